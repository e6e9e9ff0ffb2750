"""What is done with the model: data sets, configurations, commands, tables and figures."""
