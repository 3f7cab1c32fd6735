"""The three models: V (VAE), M (MDN-RNN) and C (controller), and the forward pass that rollouts use."""
