"""Mathematics: formulae read out of LaTeX and compared exactly."""
