"""Whether records that a model was to forget are forgotten, and stay so when it is compressed."""
