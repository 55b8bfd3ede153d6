"""A discrete-event simulation of a fleet, around the production `tasks.controller.plan`. No clock, no store."""
