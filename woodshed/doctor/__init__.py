"""Whether everything is ready: machine, packages, checkpoints, dataset, and the run that is planned."""
