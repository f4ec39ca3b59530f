"""Schedules, loop, validation, logs, stopping: everything that exists only while a model trains."""
