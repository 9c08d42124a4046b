"""From text to index plans: tasks, tokenized examples, partitions over clients, batches."""
