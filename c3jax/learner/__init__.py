"""The learner: losses, the batch they run over and one jitted update a step."""
