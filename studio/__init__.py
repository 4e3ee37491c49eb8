"""What a person uses: command line, app, data sets, runs, sampling."""

__version__ = "0.1.0"
