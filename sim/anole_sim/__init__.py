"""The simulator: the scheduler core that ships, in virtual time, against a model of the workers."""
