"""The networks of SAVE in torch; they see tensors, never stores."""
