"""What a researcher asks of tables and laws."""
