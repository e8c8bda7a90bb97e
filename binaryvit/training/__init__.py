"""From a configuration to a finished run: objective, schedule, loop, resume, evaluation, teacher. No studies."""
