"""Measuring: judged collections, the systems that answer them, and what each of them gains."""
