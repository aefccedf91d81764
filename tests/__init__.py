"""Tests of SinkScope; the folder mirrors the tree."""
