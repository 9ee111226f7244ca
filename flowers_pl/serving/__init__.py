"""Answer requests: a page for people and a service for programs, on one address.

Comes in: a model, and pictures that strangers send. Goes out: answers as JSON, and the page that shows them.
Must not know: how options are parsed.
"""
