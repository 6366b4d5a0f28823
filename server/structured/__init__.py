"""Constraints on a model's output: what requests demand, checked and brought into the one form that engines compile."""
