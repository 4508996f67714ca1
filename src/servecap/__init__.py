"""servecap: how many users can this LLM service carry, and what must I buy to carry more?"""

__version__ = "0.1.0"
