"""Tests of SinkScope; the folders mirror the project's."""
