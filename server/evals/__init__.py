"""Measuring how well a model finds again what it has read, read once or several times: `ostinato eval recall`."""
