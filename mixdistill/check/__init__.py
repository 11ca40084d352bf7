"""The battery that every loss and gate has to pass: what the Objective promises, tried on a function never seen before.

`check_loss(my_loss)` and `check_gate(my_gate)` run it on random packed traces of three teachers and a student that is
one table, so that whatever mixes tokens is the function's own doing. Seconds on a CPU; no data, no model. The
vocabulary pass is compiled once for all functions; the function, with the Objective around it, is compiled for each.
"""

from mixdistill.check.battery import Finding, check_gate, check_loss, check_objective

__all__ = ["Finding", "check_gate", "check_loss", "check_objective"]
