"""Who is this: API keys, issued tokens, their verification."""
