"""Rollouts: one tree of messages per problem, sampled level by level over shared frames."""
