/* Included by bcc, used by none of our probes. */
