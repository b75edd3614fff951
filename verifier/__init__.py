"""May this agent do this, now?"""
