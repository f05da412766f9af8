"""The report of runs: one HTML file with what ran, its curves and its transcripts, which opens without a network."""
