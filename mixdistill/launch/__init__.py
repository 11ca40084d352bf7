"""From a recipe to a job: what every engine has to start, and the file in which each wants it said."""
