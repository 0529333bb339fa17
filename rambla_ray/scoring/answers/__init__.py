"""What an answer is made of: reasoning and markup, tokens, clauses, forms; `scoring.reading` weighs it."""
