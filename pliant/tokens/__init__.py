"""Rows of embeddings: what becomes of tokens that are rarely or never seen, and how new ones begin.

A row that no batch looks up gets no gradient of its own. Adam's moments of it fade while it goes on drifting by what
is left of them; weight decay shrinks it, step by step, towards zero; and as a row of the output layer it is pushed
away by every prediction of another token, into the same direction as all other unseen rows. When its token comes at
last, it does not begin where a fresh row would.

:class:`TokenReset` keeps rows of unseen tokens fresh during training; :func:`renew_tokens` gives rows new values once;
:func:`grow_vocabulary` adds rows, and the optimizer follows. :func:`count_tokens` and :func:`occurrences` say which
tokens are rare.
"""

from pliant.tokens.counts import count_tokens, occurrences, rare_tokens
from pliant.tokens.reset import TokenReset
from pliant.tokens.tables import TokenTable, token_tables
from pliant.tokens.vocabulary import grow_vocabulary, renew_tokens

__all__ = [
    "TokenReset",
    "TokenTable",
    "count_tokens",
    "grow_vocabulary",
    "occurrences",
    "rare_tokens",
    "renew_tokens",
    "token_tables",
]
