"""Identity tokens of other issuers (OpenID Connect): fetch keys, verify a token, match it with trust rules.

No SQL and no HTTP routes. PyJWT is imported with the first token.
"""
