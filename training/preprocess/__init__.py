"""Raw event files in, feature tables out: streamed by Ray Data in bounded memory, restartable."""
