"""aegis: many processes, one quota, one token, one book of quotes."""

__version__ = "0.1.0"
