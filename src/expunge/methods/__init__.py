"""Unlearning methods. One file is one method; the file's name is the registered name."""

from expunge.methods.base import Edit, GradientMethod, Guard, Method, methods

__all__ = ["Edit", "GradientMethod", "Guard", "Method", "methods"]
