"""What a report's page is made of: the template, styles and scripts, and uPlot (MIT) with its licence."""
