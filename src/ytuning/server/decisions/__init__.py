"""Typed questions about a text: two protocols, their binding to tasks, and a server for other questions."""
