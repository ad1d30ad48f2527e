"""discovery-deploy: experiments on distributed OpenStack, from a file to a report."""
