"""What the package refuses on purpose: a sentence for the reader, which the command line prints without a trace."""


class Refusal(Exception):
    """Something cannot be done; the message says what and what to do instead."""
