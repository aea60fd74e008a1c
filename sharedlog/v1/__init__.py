"""Stubs made from proto/sharedlog/v1 by `make proto`. Do not edit."""
