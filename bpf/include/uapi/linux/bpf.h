/* bcc force-includes its own copy. */
