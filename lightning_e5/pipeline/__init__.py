"""The pipeline: runs the stages of an experiment, each once."""
