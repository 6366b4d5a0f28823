"""What runs next, on which pages: requests, radix prefix cache, pages, policies. Pure Python and NumPy."""
