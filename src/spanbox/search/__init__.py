"""Features of whole data sets in files, and search in them.

sources    the items of a manifest, a folder or a CSV column
embedding  their features, written in parts so that an interrupted run goes on
index      the finished file, and the nearest items to a query
page       the result of a search with pictures
"""
