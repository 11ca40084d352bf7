"""mixdistill: distil the reasoning traces of many teachers into one student, without the damage that mixing does."""

__version__ = "0.1.0"
