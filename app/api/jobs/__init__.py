"""The jobs contract: native words of the fabric, and the additive features every job of the fabric has."""
