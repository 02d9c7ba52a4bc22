"""TensorBoard: event files, plugins, the live writer, the server."""
