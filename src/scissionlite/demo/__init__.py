"""The demo: profile, slice, retrain, split and run over a constrained link, with a table.

It uses the product as a user does: its public functions, and its commands in processes of their
own.
"""
