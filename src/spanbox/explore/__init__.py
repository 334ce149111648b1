"""A local page to explore trained models: search by sentence or picture, and see which words belong to which boxes.

session    what the page asks of the models, as plain values
server     HTTP on the loopback interface, and what it refuses
page/      HTML, CSS and JavaScript, without a framework and without a request to any other server
"""
