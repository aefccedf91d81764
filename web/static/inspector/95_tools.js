// Shared with the page's other components, so that nothing is sent twice.
element.inspector.tools = { node, percent, COLOURS, unzip, unpack, drawSink, sameOrigin, loadImage, clamp, makeMapCache };
