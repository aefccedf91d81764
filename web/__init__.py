"""The page: a Gradio app around one inspector component that draws in the browser."""
