"""A local page to explore trained models: search by sentence or picture, and see which words belong to which boxes.

session    answers of the models to requests of the page, as plain values
server     HTTP on the loopback interface, and the requests that it refuses
page/      HTML, CSS and JavaScript, without a framework and without a request to any other server
"""
