"""What the study says in sentences, written by hand from the tables of the page."""

ANSWER = """- To be written from the tables."""

LIMITS = """- One small network, one optimizer, one step size, two streams of small digits."""
