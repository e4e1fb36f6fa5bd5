"""Callers that other issuers vouch for: trust rules, the exchange of identity tokens, and how people sign in."""
