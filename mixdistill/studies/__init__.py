"""Studies: a question, arms at equal budgets, several seeds, and a verdict that follows from the rows."""
